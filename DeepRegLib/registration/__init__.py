"""The parts that every registration is made of."""

"""Systems that learn but register nothing: they judge a registration. One file, one system."""

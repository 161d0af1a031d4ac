"""The parts of the DeepReg panel. Qt and MRML only; torch runs in the worker process."""

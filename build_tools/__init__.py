"""What setup.py is made of: finding torch, compiling the libraries, the second distribution name."""

"""What setup.py is made of: finding torch, compiling the native libraries, and the second distribution name."""

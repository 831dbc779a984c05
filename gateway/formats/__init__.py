"""Files of processors and banks, read line by line; a format is one module here."""

"""Files of rows: what they are, read one row at a time, written whole or not at all."""

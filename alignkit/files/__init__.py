"""Read files of rows one row at a time; write them whole or not at all."""

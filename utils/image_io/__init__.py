"""Reading and writing images and the files of maps."""

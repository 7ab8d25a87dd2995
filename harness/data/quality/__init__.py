"""What is wrong with a data set, and which samples survive."""

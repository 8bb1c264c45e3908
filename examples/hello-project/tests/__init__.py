"""The tests of wordcount, and the report about them."""

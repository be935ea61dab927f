"""Test sets, and reports and tables of the results on them."""

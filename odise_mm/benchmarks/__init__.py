"""Test sets, and reports and tables of what was measured on them."""

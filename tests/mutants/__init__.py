"""Bugs of one line, planted one at a time: the fast tests have to notice."""

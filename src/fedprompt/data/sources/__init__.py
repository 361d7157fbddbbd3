"""Forms in which people bring pictures of their own, besides folders and tables of many labels."""

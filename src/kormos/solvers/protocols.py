"""What the parts of the house expect of one another, written down."""

"""Pictures, words and who holds which of them."""

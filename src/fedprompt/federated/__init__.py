"""The round loop and its two halves; nothing here knows how messages travel."""

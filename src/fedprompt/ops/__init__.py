"""Pure tensor functions and small layers; nothing here knows of clients, texts or files."""

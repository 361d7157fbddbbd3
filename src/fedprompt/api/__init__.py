"""The Python API: what `import fedprompt as fp` offers, on the same functions as the command line."""

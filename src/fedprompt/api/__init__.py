"""The Python API: what `import fedprompt as fp` offers, on the same functions as the command line."""

import warnings

# tqdm warns in every notebook without ipywidgets that it draws plain bars; fedprompt draws its own.
warnings.filterwarnings("ignore", message="IProgress not found")

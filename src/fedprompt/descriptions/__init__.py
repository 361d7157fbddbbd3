"""Words from language models: attributes of classes and conditions of data sets, made once, kept in a reviewed file."""

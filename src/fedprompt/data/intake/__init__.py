"""What every reader of users' files shares: splits, class names, label cells, ids, tables, paths and image files."""

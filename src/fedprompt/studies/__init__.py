"""What papers printed, and the experiments that lead to it: tables with a source, protocols, and what runs them."""

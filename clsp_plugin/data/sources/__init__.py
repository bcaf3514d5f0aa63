"""Where labelled images come from, each kind in a file: folders, lists, data sets, archives."""

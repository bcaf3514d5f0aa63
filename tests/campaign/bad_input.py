def bad_input(base, random_, where, only=None):
    raise NotImplementedError

"""Replace something of an object for a while."""

import contextlib

ABSENT = object()


def fault(function):
    """Mark a generator function, which yields once, as a fault of this name."""
    managed = contextlib.contextmanager(function)
    managed.is_fault = True
    return managed


@contextlib.contextmanager
def patched(owner, name, make):
    """Set `owner.name` to make(what it was), and back."""
    before = vars(owner).get(name, ABSENT)
    setattr(owner, name, make(getattr(owner, name)))
    try:
        yield
    finally:
        if before is ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

"""The words of every cause: a sentence made from its numbers and names, and what to change. One file a layer."""

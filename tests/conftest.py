"""Its being here puts this folder on the path, so that tests may import the helpers beside it."""

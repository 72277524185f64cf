"""All methods. The folders are the survey's taxonomy, and every file in them is found from here."""

import importlib
import pkgutil

from vtlite.method import METHODS, Method, find_method, make_method

for _file in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_file.name)  # which puts its method into METHODS
for _key in sorted(METHODS):  # as the folders are
    METHODS[_key] = METHODS.pop(_key)
globals().update({cls.__name__: cls for cls in METHODS.values()})

__all__ = ["METHODS", "Method", "find_method", "make_method"]

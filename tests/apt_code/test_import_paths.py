"""The names and paths of the founding documents, and of before the rooms, lead to the very same objects."""

import importlib
import pkgutil

import pytest

from apt_code import entropy_utils, importance, patch_selection, selection, selection_settings


def test_the_founding_documents_import_the_selection_rules_from_here():
    for name in ("select_patches_by_threshold", "select_patches_by_threshold_v2", "select_patches_by_budget"):
        assert getattr(entropy_utils, name) is getattr(patch_selection, name)


@pytest.mark.parametrize("thin", [entropy_utils, patch_selection, selection_settings], ids=lambda thin: thin.__name__)
def test_what_a_thin_module_has_is_what_the_rooms_have(thin):
    homes = [importance, selection]
    for room in (importance, selection):
        files = pkgutil.iter_modules(room.__path__, f"{room.__name__}.")
        homes += [importlib.import_module(file.name) for file in files]
    for name in thin.__all__:
        found = [getattr(home, name) for home in homes if hasattr(home, name)]
        assert found and all(value is getattr(thin, name) for value in found), name

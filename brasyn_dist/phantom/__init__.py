"""Synthetic BraTS cases: folders of NIfTI volumes with anatomy, tumours and scanner effects, from a seed.

    grid.py       coordinates of a head, random fields --> lesions.py   where, how large, what they push away
    anatomy.py    brain outline, folds, ventricles, nuclei --> fractions of tissues (lesions laid over them)
    scanner.py    contrast of each sequence, texture, bias field, noise, scale --> integers
    cases.py      --> BraTS folders, cohorts

    brasyn phantom OUT --gli 6 --met 2

For demonstrations and tests without patient data. The sequences have the contrasts of real ones, and one can
be predicted in part from the others, as in real cases. They are not a model of disease.
"""

from brasyn_dist.phantom.cases import Kind, brats_image, make_case, write_case

__all__ = ["Kind", "brats_image", "make_case", "write_case"]

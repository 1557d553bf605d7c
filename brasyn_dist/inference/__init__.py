"""Synthesis: cases with missing modalities in, the missing volumes out.

    weights -----------> members (a model and the view that it runs over)
                            |
    case folders --> tasks --read--> volumes --synthesise--> mean over members --write--> <case>-<modality>.nii.gz
      cases          cases  pipeline         volume             volume          pipeline     + manifest.json

`api` joins the parts: `infer_single` for four files, `infer_batch` for a folder of cases, which `python -m brasyn_dist.infer` calls.
"""

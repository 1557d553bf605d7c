"""Synthesis: cases with missing modalities in, the missing volumes out.

    --weights --config--> members (a model and the view that it runs over)     fusion (mean; or fitted: fit, fit_fusion.py)
                             |                                                    |
    case folders --> tasks --read--> volumes --synthesise--> a volume a member --fuse--> volume --write--> <case>-<modality>.nii.gz
      cases          cases  pipeline           volume                        volume, fusion    pipeline       + manifest.json

`api` joins the parts: `infer_single` for four files, `infer_batch` for a folder of cases, which `python -m brasyn_dist.infer` calls.
`fanout` shares a folder's cases between processes.
"""

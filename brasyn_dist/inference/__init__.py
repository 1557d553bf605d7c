"""Inference: the missing modalities of cases.

    --weights --load_inference--> members (a model and the view that it runs over), fusion (mean or fitted weights)
                                         |
    case folders --> CaseRequest --read--> volumes --synthesise: one volume for each member --fuse--> --write--> <case>-<modality>.nii.gz
                     cases      case_job             synthesis                           fusion      case_job   + manifest.json

`api` connects the parts: `infer_single` for the files of one case, `infer_batch` for a folder of cases. `infer_batch` shares
the cases with other processes through `brasyn_dist.workqueue`.
"""

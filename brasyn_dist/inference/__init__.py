"""Inference: the missing modalities of cases.

    --weights --load_inference--> members (a model and a view each), fusion (the mean, or fitted weights)
                                         |
    case folders --> CaseRequest --read--> volumes --synthesise: a volume for each member --fuse--> --write-->
                     cases        case_job            synthesis                            fusion    case_job

    --> <case>-<modality>.nii.gz, manifest.json

`api` connects the parts: `infer_single` for the files of one case, `infer_batch` for a folder of cases.
`infer_batch` shares the cases with other processes through `brasyn_dist.workqueue`.
"""

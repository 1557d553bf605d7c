"""Synthesis of missing brain MRI modalities, trained on many GPUs and nodes.

The data flow, and the modules in its order:

    BraTS folders --> statistics.json --> tar shards + index.json --> stream --> train --> checkpoints --> synthesise --> NIfTI --> evaluate --> report
    data.nifti        data.statistics     data.make_shards            data.plan  training  training        inference               evaluation
                                          data.shards                 data.stream models   .checkpoint
                                                                                 losses
"""

__version__ = "0.1.0"

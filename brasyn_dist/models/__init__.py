"""Networks: torch.nn modules without knowledge of processes, devices or patient files.

    layers --> feature_fusion, infuser --> generator --> passes (both passes of an update)
    discriminator, segmenter published_weights (conversion of the thesis' weights), pretrained (exports:
    config.json and model.safetensors)

Import from the modules.
"""

"""Networks: torch.nn modules without knowledge of processes, devices or patient files.

    layers --> feature_fusion, infuser --> hfgan --> cycle_synthesis (both passes of an update)
    layers --> conditional_unet, discriminator, segmenter
    volume_network --> volume_unet, refiner

registry            generators by `generator.kind`
pretrained          exports: config.json and model.safetensors
published_weights   conversion of the thesis' weights
export, model_card, monai_bundle, torch_export, hub: exports for others
"""

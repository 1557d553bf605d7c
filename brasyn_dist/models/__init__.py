"""Networks: plain modules that know nothing of devices, ranks or files of patients.

    layers --> fusion, infuser --> generator --> passes (both passes of an update, each slice encoded once)
    discriminator, segmenter
    published (the thesis' weights) --> export (config.json + model.safetensors)

Import from the modules themselves.
"""

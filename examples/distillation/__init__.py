"""The parts of distill_cifar.py and distill_imagenet.py."""

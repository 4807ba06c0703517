"""
From noise to image, the teacher's way
======================================

A diffusion model is asked again and again what clean image lies behind a noisy one, from high noise
to low. This is the work that distillation pays once and the student never again.
"""

import matplotlib.pyplot as plt
import torch

from deqgen.data import noise_for, to_uint8
from deqgen.teachers import load_teacher, sample

# %%
# The embedded teacher is a small model of CIFAR-10. A denoiser is any function ``(x, sigma, label)
# -> x0``, so one that keeps what it answers can stand in for it.

teacher = load_teacher("cifar10-small")
noise, label = noise_for([0, 1, 3], (3, 32, 32)), torch.tensor([1, 7, 8])
answers: list[tuple[float, torch.Tensor, torch.Tensor]] = []


def watched(x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None = None):
    answer = teacher.denoiser(x, sigma, label)
    answers.append((float(sigma[0]), x, answer))
    return answer


with torch.no_grad():
    images = sample(watched, noise, label, sampler=teacher.sampler)
print(f"{len(answers)} evaluations of the network, sigma from {answers[0][0]:g} down")

# %%

shown = [answers[i] for i in torch.linspace(0, len(answers) - 1, 8).round().long().tolist()]
figure, axes = plt.subplots(4, len(shown), figsize=(10, 4.6), layout="constrained")
for column, (sigma, x, answer) in zip(axes.T, shown, strict=True):
    scaled = x / (sigma**2 + 0.5**2) ** 0.5
    pictures = [scaled[0], *answer]
    for axis, picture in zip(column, pictures, strict=True):
        axis.imshow(to_uint8(picture[None].float())[0].permute(1, 2, 0))
        axis.set_xticks([])
        axis.set_yticks([])
    column[0].set_title(f"sigma {sigma:.3g}", fontsize=9)
axes[0, 0].set_ylabel("what it sees")
for axis, name in zip(axes[1:, 0], ("automobile", "horse", "ship"), strict=True):
    axis.set_ylabel(name)
plt.show()

# %%
# **What to see.** The top row is what the network is given for the first image, scaled to one
# brightness; below it is its answer for each of three. At high noise the answers are blurred
# averages of a class; colours and layout are settled first, edges last, and the last columns hardly
# differ.

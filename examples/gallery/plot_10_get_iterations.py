"""
From noise to image, the student's way
======================================

A Generative Equilibrium Transformer (GET) is trained on what a teacher made of noise, and its loss
supervises every iterate of its equilibrium. So every iterate is an image: here they are.
"""

import matplotlib.pyplot as plt
import torch

from deqgen import create_model
from deqgen.data import noise_for, to_uint8
from deqgen.teachers import Guidance, Sampler, load_teacher
from deqgen.training import TrajectoryLoss

# %%
# Eight pairs from the embedded teacher, and the smallest GET. It will learn them by heart, which
# takes seconds; ``make demo`` does it properly, and shows noise that was never trained on.

teacher = load_teacher("cifar10-small")
teacher = teacher.replace(sampler=Sampler(steps=8), guidance=Guidance(scale=5, interval=(0.25, 6)))
noise, label = noise_for(range(8), (3, 32, 32)), torch.tensor([0, 1, 4, 6, 7, 8, 9, 1])
target = teacher.sample(noise, label).float()

model = create_model("GET-N/8", num_classes=10)
criterion = TrajectoryLoss()
steps = 100
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
for step in range(steps):
    loss = criterion(model(noise, label).images, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 25 == 0 or step == steps - 1:
        print(f"step {step:3}: loss {loss.item():.3f}")

# %%
# In training mode the output holds the image of every iteration.

with torch.no_grad():
    iterates = model.train()(noise, label).images

# %%

shown = {"noise": noise / 2}
shown |= {f"iteration {k}": images for k, images in enumerate(iterates, 1) if k in (1, 2, 3, 6)}
shown["teacher"] = target
figure, axes = plt.subplots(len(shown), 8, figsize=(9, 7), layout="constrained")
for line, (name, images) in zip(axes, shown.items(), strict=True):
    line[0].set_ylabel(name)
    for axis, picture in zip(line, to_uint8(images), strict=True):
        axis.imshow(picture.permute(1, 2, 0))
        axis.set_xticks([])
        axis.set_yticks([])
plt.show()

# %%
# **What to see.** The first iteration has the picture already, coarsely, with the edges of the 8x8
# patches; the later ones correct it less and less, towards the teacher's row, as the loss asked
# each of them to. One pass of the network is all six of them together.

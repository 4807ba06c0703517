"""Teachers: diffusion models that turn noise into images in many evaluations.

Mental model, in five lines:
1. A ``Denoiser`` is any diffusion model seen through one door: ``(x, sigma, label) -> x0``.
2. A ``Sampler`` (method x schedule x steps) says where to evaluate it; ``sample`` is the one loop.
3. ``Guidance`` exaggerates what the class changes; a guided evaluation costs two.
4. A ``Teacher`` freezes all three: ``sample(noise, label)`` is deterministic, ``nfe`` is its cost.
5. ``load_teacher(name_or_path)`` and ``load_edm`` read one from a file, ``save_teacher`` writes it.
"""

from deqgen.teachers import published  # registers its names
from deqgen.teachers.edm_file import convert_edm, load_edm
from deqgen.teachers.guidance import Guidance
from deqgen.teachers.protocol import CountingDenoiser, Denoiser
from deqgen.teachers.registry import (
    TeacherError,
    available_teachers,
    load_teacher,
    register_architecture,
    register_teacher,
    save_teacher,
)
from deqgen.teachers.restricted import UnsafePickleError
from deqgen.teachers.sampler import Euler, Heun, Method, Sampler, sample
from deqgen.teachers.schedules import Karras, Schedule
from deqgen.teachers.teacher import Teacher

__all__ = [
    "CountingDenoiser",
    "Denoiser",
    "Euler",
    "Guidance",
    "Heun",
    "Karras",
    "Method",
    "Sampler",
    "Schedule",
    "Teacher",
    "TeacherError",
    "UnsafePickleError",
    "available_teachers",
    "convert_edm",
    "load_edm",
    "load_teacher",
    "published",
    "register_architecture",
    "register_teacher",
    "sample",
    "save_teacher",
]

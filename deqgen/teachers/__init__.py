"""Teachers: diffusion models that turn noise into images in many evaluations.

Mental model, in five lines:
1. A ``Denoiser`` is any diffusion model seen through one door: ``(x, sigma, label) -> x0``.
2. A ``Sampler`` (method x schedule x steps, churn) says where to evaluate it; ``sample`` is the one
   loop, and ``sample_parallel`` finds the same images in fewer sequential calls.
3. ``Guidance`` exaggerates what the class changes; a guided evaluation costs two.
4. A ``Teacher`` freezes all three: ``sample(noise, label)`` is deterministic (with churn, given the
   samples' generators too), ``nfe`` is its cost.
5. ``load_teacher`` opens any of them: a name, our file, a checkpoint of EDM, a diffusers pipeline.
"""

from deqgen.teachers import published  # registers its names
from deqgen.teachers.churn import Churn
from deqgen.teachers.diffusers import load_diffusers
from deqgen.teachers.discrete import DiscreteDenoiser
from deqgen.teachers.edm_file import convert_edm, load_edm
from deqgen.teachers.guidance import Guidance
from deqgen.teachers.methods import DPMpp2M, Euler, Heun, Method
from deqgen.teachers.parallel import ParallelReport, sample_parallel
from deqgen.teachers.preconditioning import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
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
from deqgen.teachers.sampler import Sampler, sample
from deqgen.teachers.schedules import VE, VP, Karras, Linear, Schedule
from deqgen.teachers.teacher import Teacher

__all__ = [
    "VE",
    "VP",
    "Churn",
    "CountingDenoiser",
    "DPMpp2M",
    "Denoiser",
    "DiscreteDenoiser",
    "EDMPrecond",
    "Euler",
    "Guidance",
    "Heun",
    "Karras",
    "Linear",
    "Method",
    "ParallelReport",
    "Sampler",
    "Schedule",
    "Teacher",
    "TeacherError",
    "UnsafePickleError",
    "VEPrecond",
    "VPPrecond",
    "available_teachers",
    "convert_edm",
    "iDDPMPrecond",
    "load_diffusers",
    "load_edm",
    "load_teacher",
    "published",
    "register_architecture",
    "register_teacher",
    "sample",
    "sample_parallel",
    "save_teacher",
]

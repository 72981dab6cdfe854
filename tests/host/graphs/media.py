"""What differs between pictures, videos, and videos with sound: loaders, empty latents, and what is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .builder import File, Node, Slot
from .layout import Column
from .models import Model
from .pieces import Loaded, Prompts, load


@dataclass(frozen=True)
class Pictures:
    """Square pictures, any number at a time."""

    noun: str = "picture"
    takes_batches: bool = True

    def load(self, column: Column, model: Model) -> Loaded:
        """Add the loaders."""
        return load(column, model)

    def size(self, column: Column, model: Model, loaded: Loaded, title: str) -> Node:
        """Add an empty latent."""
        return column.node(model.latent, title=title, width=model.side, height=model.side)

    def several(self, column: Column, model: Model, loaded: Loaded) -> Node:
        """Add an empty latent of several pictures."""
        title = "Size and number of pictures"
        return column.node(model.latent, title=title, width=model.side, height=model.side, batch_size=4)

    def conditioned(self, column: Column, loaded: Loaded, prompts: Prompts) -> Prompts:
        """Return the prompts as the sampler takes them."""
        return prompts

    def save(self, column: Column, sampled: Node, loaded: Loaded, name: str) -> None:
        """Decode and save what was sampled."""
        column.node("SaveImage", 360, images=decoded(column, sampled, loaded), filename_prefix=name)


@dataclass(frozen=True)
class Videos(Pictures):
    """Videos, one at a time."""

    noun: str = "video"
    takes_batches: bool = False
    width: int = 1280
    height: int = 704
    frames: int = 121
    fps: float = 24.0
    with_vae: bool = False  # the node for the empty latent asks for it

    def size(self, column: Column, model: Model, loaded: Loaded, title: str) -> Node:
        """Add an empty latent."""
        vae = {"vae": loaded.vae} if self.with_vae else {}
        size = {"width": self.width, "height": self.height, "length": self.frames}
        return column.node(model.latent, title=title, **size, **vae)

    def several(self, column: Column, model: Model, loaded: Loaded) -> Node:
        """Add an empty latent. One video has pictures enough to compare."""
        return self.size(column, model, loaded, "Size and length")

    def save(self, column: Column, sampled: Node, loaded: Loaded, name: str) -> None:
        """Decode and save what was sampled."""
        images = decoded(column, sampled, loaded)
        video = column.node("CreateVideo", images=images, fps=self.fps, **self.sound(column, sampled, loaded))
        column.node("SaveVideo", 300, video=video, filename_prefix=f"video/{name}")

    def sound(self, column: Column, sampled: Node, loaded: Loaded) -> dict[str, Node]:
        """Return the sound as an input of the node that makes the video."""
        return {}


@dataclass(frozen=True)
class VideosWithSound(Videos):
    """Videos whose latents hold their sound. sound_vae: its file."""

    sound_vae: File | None = None

    def load(self, column: Column, model: Model) -> Loaded:
        """Add the loaders, with that of the sound's VAE."""
        sound = column.node("VAELoader", title="Load VAE of the sound", vae_name=self.sound_vae)
        return load(column, model)._replace(sound_vae=sound)

    def sound(self, column: Column, sampled: Node, loaded: Loaded) -> dict[str, Node]:
        """Decode the sound."""
        return {"audio": column.node("VAEDecodeAudio", samples=sampled, vae=loaded.sound_vae)}


@dataclass(frozen=True)
class LtxVideos(VideosWithSound):
    """LTX-2's: one checkpoint has the model and both VAEs, and prompts know the frames per second."""

    def load(self, column: Column, model: Model) -> Loaded:
        """Add the loaders."""
        checkpoint = column.node("CheckpointLoaderSimple", ckpt_name=model.unet)
        clip = column.node("LTXAVTextEncoderLoader", text_encoder=model.encoders[0], ckpt_name=model.unet)
        sound = column.node("LTXVAudioVAELoader", ckpt_name=model.unet)
        column.group("1. Model")
        fps = column.node("PrimitiveFloat", title="Frames per second", value=self.fps)
        return Loaded(checkpoint, clip, checkpoint["VAE"], sound, fps)

    def size(self, column: Column, model: Model, loaded: Loaded, title: str) -> Node:
        """Add empty latents of picture and sound."""
        size = {"width": self.width, "height": self.height, "length": self.frames}
        video = column.node("EmptyLTXVLatentVideo", title=title, **size)
        length: dict[str, Any] = {"frames_number": self.frames, "frame_rate": loaded.fps}
        sound = column.node("LTXVEmptyLatentAudio", title="Sound, as long", audio_vae=loaded.sound_vae, **length)
        return column.node("LTXVConcatAVLatent", title="Picture and sound", video_latent=video, audio_latent=sound)

    def conditioned(self, column: Column, loaded: Loaded, prompts: Prompts) -> Prompts:
        """Tell both prompts the frames per second."""
        both = {"positive": prompts.positive, "negative": prompts.negative}
        timed = column.node("LTXVConditioning", title="Prompts with frame rate", **both, frame_rate=loaded.fps)
        return Prompts(timed["positive"], timed["negative"])

    def save(self, column: Column, sampled: Node, loaded: Loaded, name: str) -> None:
        """Decode and save picture and sound."""
        parts = column.node("LTXVSeparateAVLatent", title="Picture and sound apart", av_latent=sampled)
        images = column.node("VAEDecode", samples=parts["video_latent"], vae=loaded.vae)
        audio = column.node("LTXVAudioVAEDecode", samples=parts["audio_latent"], audio_vae=loaded.sound_vae)
        video = column.node("CreateVideo", images=images, fps=loaded.fps, audio=audio)
        column.node("SaveVideo", 300, video=video, filename_prefix=f"video/{name}")


def decoded(column: Column, sampled: Node, loaded: Loaded) -> Node | Slot:
    """Decode what was sampled."""
    return column.node("VAEDecode", samples=sampled, vae=loaded.vae)

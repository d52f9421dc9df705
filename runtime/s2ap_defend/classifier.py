"""The defended classifier that applications embed."""

from pathlib import Path

from s2ap_defend.engines import Device, Engine
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.images import check_images
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32, Verdicts


class DefendedClassifier:
    """A model file that purifies, detects and corrects.

        classifier = DefendedClassifier.load("model.onnx")
        verdicts = classifier(images)       # float32 [N, C, H, W] in [0, 1]
        verdicts.label, verdicts.adversarial

    It may be called from several threads.

    Args:
        path: Where the model file was read.
        manifest: Its manifest.
        engine: An engine over the whole file.
    """

    def __init__(self, path: Path, manifest: Manifest, engine: Engine) -> None:
        self.path = path
        self.manifest = manifest
        self._engine = engine

    @classmethod
    def load(cls, path: str | Path, *, device: Device = "auto", threads: int | None = None) -> "DefendedClassifier":
        """Open, verify and start a defended model file.

        Args:
            path: The file; weights in external data lie beside it.
            device: 'auto', 'cpu', 'cuda' or 'tensorrt'.
            threads: CPU threads inside one operator; None leaves the choice to the engine.

        Raises:
            ModelFileError: If the file is missing, broken, changed, undefended or of another version.
            EngineError: If the device cannot be used.
        """
        model = open_model_file(Path(path))
        engine = OnnxRuntimeEngine(model.path, device=device, threads=threads)
        return cls(model.path, model.manifest, engine)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.manifest.input.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.manifest.classes

    @property
    def provider(self) -> str:
        """Name of the execution provider that runs the model."""
        return self._engine.provider

    def validate(self, images: object) -> Float32:
        """Return `images` contiguous if the model takes them: float32 [N, C, H, W] in [0, 1], N > 0.

        Raises:
            InputError: With the first thing that is wrong.
        """
        return check_images(images, self.input_shape)

    def __call__(self, images: Float32) -> Verdicts:
        """Purify, detect and correct.

        Args:
            images: float32 [N, C, H, W] in [0, 1].

        Raises:
            InputError: If the images do not fit the model.
            EngineError: If the engine fails.
        """
        return Verdicts(*self._engine.run({"image": self.validate(images)}, Verdicts.FIELDS))

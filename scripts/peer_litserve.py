"""The server of scripts/load.py --litserve: the network, decoding and answers of `vision_zoo serve`, by LitServe.

LITSERVE/bin/python scripts/peer_litserve.py CKPT_PATH PORT    # in an environment that has litserve besides vision_zoo

Requests are JSON, {"image": BASE64}; batches are made as LitServe documents it, by max_batch_size and batch_timeout.
"""

import base64
import io
import sys

import litserve
import torch

from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.verbs.predict import CACHED, answered
from vision_zoo.verbs.serve import _row
from vision_zoo.verbs.serve.batching import reader


class Classify(litserve.LitAPI):
    """One image in, the labels and probabilities out."""

    def setup(self, device: str) -> None:
        """Open the checkpoint, in the process that computes."""
        checkpoint = open_checkpoint(sys.argv[1])
        self.model = Classifier.from_checkpoint(checkpoint.content).to(device).eval()
        resize, interpolation = checkpoint.resizing
        options = {"resize": resize, "value_range": self.model.value_range, "interpolation": interpolation}
        self.read = reader(self.model.image_shape, **options)

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        """Pixels, uint8 (C, H, W)."""
        return self.read(io.BytesIO(base64.b64decode(request["image"])))

    def predict(self, pixels: torch.Tensor) -> list[dict[str, object]]:
        """The answer for each image of a batch, uint8 (B, C, H, W)."""
        top_k = min(5, len(self.model.class_names))
        return [_row(*answer) for answer in answered(self.model, pixels.to(self.model.device), top_k)]

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        """One answer for each request of the batch."""
        return output

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        """The body of an answer, as JSON."""
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Classify(max_batch_size=CACHED, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False
    )

import pytest

from vision_zoo.data.base import ImageDataModule


@pytest.fixture
def ready():
    """Sets a data module up as Lightning would."""

    def set_up(data: ImageDataModule) -> ImageDataModule:
        data.prepare_data()
        data.setup()
        return data

    return set_up

"""The classifiers that can be trained, and how a checkpoint names them."""

from s2ap_train.models.classifier import Classifier
from s2ap_train.models.folding import evaluation_view, fold_batch_norm
from s2ap_train.models.modes import batch_norm_statistics_frozen, evaluation_mode
from s2ap_train.models.resnet import ResNet18
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.models.table import ARCHITECTURES, ModelTable, build, check_table, create
from s2ap_train.models.user_network import UserNetwork
from s2ap_train.models.vgg import VGG16
from s2ap_train.models.wide_resnet import WideResNet

__all__ = [
    "ARCHITECTURES",
    "VGG16",
    "Classifier",
    "ModelTable",
    "ResNet18",
    "SmallCNN",
    "UserNetwork",
    "WideResNet",
    "batch_norm_statistics_frozen",
    "build",
    "check_table",
    "create",
    "evaluation_mode",
    "evaluation_view",
    "fold_batch_norm",
]

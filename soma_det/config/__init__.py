from soma_det.config.adapter import adapter_config
from soma_det.config.checks import check_cfg, check_device
from soma_det.config.defaults import CLASSES, add_soma_config
from soma_det.config.setup import REMOVED, setup_cfg

__all__ = ["CLASSES", "REMOVED", "adapter_config", "add_soma_config", "check_cfg", "check_device", "setup_cfg"]

from soma_det.config.checks import check_cfg, check_device
from soma_det.config.defaults import CLASSES, DOMAINS, add_soma_config
from soma_det.config.setup import REMOVED, setup_cfg

__all__ = ["CLASSES", "DOMAINS", "REMOVED", "add_soma_config", "check_cfg", "check_device", "setup_cfg"]

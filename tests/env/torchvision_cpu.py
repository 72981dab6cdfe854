"""Make a CUDA build of torchvision importable beside a CPU build of torch.

Its compiled operators cannot load there. torchvision survives that, but then registers shape functions for two
operators that do not exist. This module declares their schemas first; nothing ever calls them.
"""

import sys


class _BeforeTorchvision:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _BeforeTorchvision.keep_alive = self


sys.meta_path.insert(0, _BeforeTorchvision())

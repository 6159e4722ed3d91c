from sightline.data.store.views import Views

views = Views.open("data/modelnet40_views")
image = views.image("airplane_0001", 3, background="white")  # (96, 96, 3) uint8

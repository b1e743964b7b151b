//! Decoding that never gives up on an object: a field of the wrong shape becomes a [`Defect`] of its object, and
//! everything else is kept (C-15, C-31). Works on JSON and YAML alike.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Defect;

/// A field as found.
#[derive(Clone, Debug, Default)]
pub enum Loose<T> {
    /// Absent or null.
    #[default]
    Missing,
    Good(T),
    /// Another shape than the schema's.
    Bad,
}

/// What a [`Loose`] can hold. Each method answers one shape; `None` means that it is the wrong one.
pub trait Shape: Sized {
    /// The right shape, for people: `a number`.
    const NAME: &'static str;

    fn text(_: &str) -> Option<Self> {
        None
    }

    fn number(_: i64) -> Option<Self> {
        None
    }

    fn boolean(_: bool) -> Option<Self> {
        None
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape for String {
    const NAME: &'static str = "a text";

    fn text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Shape for i64 {
    const NAME: &'static str = "a number";

    fn number(number: i64) -> Option<Self> {
        Some(number)
    }
}

impl Shape for bool {
    const NAME: &'static str = "true or false";

    fn boolean(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl<T: Shape> Shape for Vec<Loose<T>> {
    const NAME: &'static str = "a list";

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Self::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// A nested object whose own fields are all [`Loose`].
#[derive(Clone, Debug, Default)]
pub struct Nested<T>(pub T);

impl<T: for<'de> Deserialize<'de>> Shape for Nested<T> {
    const NAME: &'static str = "a mapping";

    fn map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|inner| Some(Self(inner)))
    }
}

impl<'de, T: Shape> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor(PhantomData))
    }
}

struct LooseVisitor<T>(PhantomData<T>);

impl<'de, T: Shape> Visitor<'de> for LooseVisitor<T> {
    type Value = Loose<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::NAME)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(T::text(text).into())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(T::boolean(value).into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(T::number(number).into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(number).ok().and_then(T::number).into())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Loose::Bad)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Loose::Missing)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Loose::Missing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::list(list).map(Into::into)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::map(map).map(Into::into)
    }
}

impl<T> From<Option<T>> for Loose<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Bad, Self::Good)
    }
}

impl<T> Loose<T> {
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }
}

/// Collects the defects of one object while its fields are taken.
#[derive(Debug, Default)]
pub struct Defects(pub Vec<Defect>);

impl Defects {
    pub fn add(&mut self, what: impl fmt::Display, next: impl fmt::Display) {
        self.0.push(Defect { what: what.to_string(), next: next.to_string() });
    }

    /// The field's value; a wrong shape is noted under `path`.
    pub fn take<T: Shape>(&mut self, field: Loose<T>, path: impl fmt::Display) -> Option<T> {
        match field {
            Loose::Missing => None,
            Loose::Good(value) => Some(value),
            Loose::Bad => {
                self.add(
                    format_args!("{path} has the wrong type, ignored"),
                    format_args!("write {}", T::NAME),
                );
                None
            }
        }
    }

    /// The good items of a list with their index.
    pub fn items<'a, T: Shape + 'a>(
        &'a mut self,
        field: Loose<Vec<Loose<T>>>,
        path: &str,
    ) -> Vec<(usize, T)> {
        let items = self.take(field, path).unwrap_or_default();
        let numbered = items.into_iter().enumerate();
        numbered.filter_map(|(i, item)| Some((i, self.take(item, format_args!("{path}[{i}]"))?))).collect()
    }

    pub fn nested<T: for<'de> Deserialize<'de> + Default>(
        &mut self,
        field: Loose<Nested<T>>,
        path: impl fmt::Display,
    ) -> T {
        self.take(field, path).unwrap_or_default().0
    }

    /// A port number from 1 to 65535.
    pub fn port(&mut self, number: i64, path: impl fmt::Display) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.add(format_args!("{path} is {number}, ignored"), "write a number from 1 to 65535");
        }
        port
    }
}

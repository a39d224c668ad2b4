//! Records with arbitrary values: a deserializer that takes every value from a string of bytes, whatever the type. When
//! the bytes run out all further values are the smallest there are, so that every record ends.

use proptest::prelude::*;
use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, IntoDeserializer, SeqAccess, VariantAccess, Visitor,
        value::Error,
    },
};

/// A record made of arbitrary values.
pub fn record<R: DeserializeOwned + std::fmt::Debug>() -> impl Strategy<Value = R> {
    prop::collection::vec(any::<u8>(), 0..2000).prop_map(|bytes| roll(&bytes))
}

/// The record that these bytes make.
pub fn roll<R: DeserializeOwned>(bytes: &[u8]) -> R {
    R::deserialize(&mut Dice { bytes }).expect("records have no types that the dice lack")
}

struct Dice<'a> {
    bytes: &'a [u8],
}

impl Dice<'_> {
    fn bits(&mut self, bytes: usize) -> u64 {
        let taken = bytes.min(self.bytes.len());
        let (front, rest) = self.bytes.split_at(taken);
        self.bytes = rest;
        front.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// Most lists are short; one in sixteen is as long as 255 items.
    fn length(&mut self) -> usize {
        match self.bits(1) {
            n if n < 240 => n as usize % 6,
            _ => self.bits(1) as usize,
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $bytes:literal);+ $(;)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.bits($bytes) as $type)
        })+
    };
}

impl<'de> Deserializer<'de> for &mut Dice<'_> {
    type Error = Error;

    numbers! {
        deserialize_u8 visit_u8 u8, 1;
        deserialize_u16 visit_u16 u16, 2;
        deserialize_u32 visit_u32 u32, 4;
        deserialize_u64 visit_u64 u64, 8;
        deserialize_i16 visit_i16 i16, 2;
        deserialize_i32 visit_i32 i32, 4;
        deserialize_i64 visit_i64 i64, 8;
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.bits(1) & 1 == 1)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let characters = (0..self.length()).map(|_| char::from_u32(self.bits(3) as u32).unwrap_or('\u{fffd}'));
        visitor.visit_string(characters.collect())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let length = self.length();
        visitor.visit_byte_buf((0..length).map(|_| self.bits(1) as u8).collect())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.bits(1) & 1 == 1 {
            visitor.visit_some(self)
        } else {
            visitor.visit_none()
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = self.length();
        visitor.visit_seq(Items { dice: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { dice: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let variant = self.bits(1) as u32 % variants.len() as u32;
        visitor.visit_enum(Variant { dice: self, variant })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("a type that the dice lack"))
    }

    serde::forward_to_deserialize_any! {
        i8 i128 u128 f32 f64 char str bytes unit unit_struct tuple_struct map identifier ignored_any
    }
}

struct Items<'d, 'a> {
    dice: &'d mut Dice<'a>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.dice).map(Some)
    }
}

struct Variant<'d, 'a> {
    dice: &'d mut Dice<'a>,
    variant: u32,
}

impl<'de, 'd, 'a> EnumAccess<'de> for Variant<'d, 'a> {
    type Error = Error;
    type Variant = &'d mut Dice<'a>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), Error> {
        Ok((seed.deserialize(self.variant.into_deserializer())?, self.dice))
    }
}

impl<'de> VariantAccess<'de> for &mut Dice<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.deserialize_tuple(fields.len(), visitor)
    }
}

/// The dice reach every variant: without that the properties below would look at less than they say.
#[test]
fn every_variant_comes_up() {
    use floe_image::record::VmaSource;
    let variant = |byte: u8| -> VmaSource { roll(&[byte]) };
    assert!(matches!(variant(0), VmaSource::Anonymous));
    assert!(matches!(variant(1), VmaSource::Shmem { .. }));
    assert!(matches!(variant(2), VmaSource::File { .. }));
    assert!(matches!(variant(3), VmaSource::Special { .. }));
    assert!(matches!(variant(4), VmaSource::Segment { .. }));
    assert!(matches!(variant(5), VmaSource::AioRing(_)));
}
